"""The stages. Importing a stage must not import torch: heavy imports live inside `run`."""
