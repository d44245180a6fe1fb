"""The stages of dvc.yaml, one file per stage with run(params); only the command line imports them."""
