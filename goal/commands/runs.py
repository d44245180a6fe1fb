"""Where MLflow's pages show what the record holds of this project."""

import logging

from goal import tracking
from goal.config import Params
from goal.record.recorder import Refused, Unreachable

log = logging.getLogger(__name__)


def experiment(params: Params) -> str:
    """The id of the experiment on the tracking server; empty where tracking is off or no server answers."""
    if not params.tracking.enabled or not tracking.uri().startswith("http"):
        return ""
    tracking.prepare(tracking.IMPATIENT)
    try:
        with tracking.answering():
            return tracking.experiment_id(tracking.connect(tracking.uri()), params.tracking.experiment)
    except (Unreachable, Refused) as error:
        log.warning("%s: %s; the report has no links to runs", tracking.address(), error)
        return ""
