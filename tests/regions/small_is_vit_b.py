"""In a process that imports this, the small SAM stands in for vit_b, through the same loading."""

from segment_anything import sam_model_registry

from benchmarks import small_sam

sam_model_registry["vit_b"] = small_sam.build
