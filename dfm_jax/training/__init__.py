"""From a batch to the next state, and a run's loop over them.

corruption          what is random about a batch: times, the pair (x_0, x_1), x_t
learned_schedules   noise and loss where the path's schedules are parameters
step                one update: noise, loss, gradient, optimizer, average
state               what a run is at a step
loop                updates, metrics, checkpoints, from the first or newest step to the last
resume              what may change when a run is continued
"""
