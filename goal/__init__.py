"""GOAL: fine-tune CLIP on long captions by aligning image regions with sentences (CVPR 2025)."""
