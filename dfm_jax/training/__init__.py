"""Training: one update from a batch to the next state, and the loop over updates.

corruption          the random part of a batch: times, the pair (x_0, x_1), x_t
learned_schedules   corruption and loss of a path whose schedules are parameters of the model
step                one update: noise, loss, gradient, optimizer, average
state               everything that changes from step to step
loop                updates, metrics, checkpoints, from the first or newest step to the last
resume              which fields of the config may change when a run is continued
"""
