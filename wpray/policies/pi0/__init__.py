"""pi0 by Transformers' own model: a flow-matching VLA whose chunks of actions are drawn from keyed noise."""
