"""params.yaml as typed sections (schema), the presets, and where each artefact lies (paths)."""

from goal.config.schema import (  # noqa: F401
    DATA_SOURCES,
    PARAMS_FILE,
    Data,
    Detector,
    Felzenszwalb,
    Folder,
    Gate,
    PairChoice,
    Pairs,
    Params,
    Regions,
    Sam,
    Stage,
    Stage2,
    load,
    parse,
)
