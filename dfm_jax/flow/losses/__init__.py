"""Losses: `objective` (query and formula), `mixture` (those of the mixture path and their names), `dense` (the same as
functions of logits), `evidence` (closed forms for leave-one-out logits). Other paths have theirs beside them."""
