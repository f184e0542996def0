"""Losses: `objective` (the base class: a query and a formula), `mixture` (the losses of the mixture path, by name),
`dense` (the same losses as functions of logits), `evidence` (closed forms for leave-one-out logits). The losses of
another path are in that path's folder."""
