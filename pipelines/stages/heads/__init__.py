"""Hidden states, training and judgement of drafting heads."""
