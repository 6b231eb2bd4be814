"""What Týr leaves in the history of a model."""

SEARCHED = {
    "stage": "export_compact",
    "sparsity": 0.5,
    "levels": 9,
    "searched": 1,
    "guided": 4,
    "budget": "units",
    "iteration": 1,
    "score": "official",
    "accumulation": "expectation",
    "accumulate_at": "sublayer",
    "refit": True,
    "attention_unit": "head",
    "layout": "compact",
}
