"""The stages of dvc.yaml, one file each with run(params); imported by the command line alone."""
