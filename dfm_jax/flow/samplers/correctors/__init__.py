"""Correctors repair what a step got wrong, at the time that it arrived at (mathematics.md E.5).

- `sites`: which positions a round changes
- `settings`: the correctors that a solver takes, `Gibbs`, `Resample` and `ForwardBackward`, by name too
- `gibbs`: their rounds as moves; `redraw`: those under `unmask`
- `corrected`: a sampler's moves with rounds of a corrector between them
- `forward_backward`: the step called 'corrector', which has its rounds in its own plan
"""

from dfm_jax.flow.samplers.correctors.forward_backward import Corrector

__all__ = ["Corrector"]
