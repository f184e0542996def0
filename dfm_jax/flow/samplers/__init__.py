"""Samplers: how a model's posterior becomes texts.

- `denoiser`: what a sampler asks of a model, and what a model answers
- `grid` (times), `step` (the base class of steps), `fresh` (their draws from the source)
- `moves`: any sampler as a sequence of moves, which ask and then change the state; `trajectory` makes them
- `loop`: the compiled loop over moves; `solver`: all of these together; `guidance`: by a prompt
- `jumps`, `stochastic`: steps of the mixture path; the steps of another path are in that path's folder
- `unmasking`, `correctors`: samplers that look at the posterior; `events`: chains without steps
- `names`: the table of them all
"""
