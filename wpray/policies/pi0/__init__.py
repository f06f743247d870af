"""pi0 in Transformers' own format: a flow-matching VLA whose chunks of actions are drawn from keyed noise."""
