"""What any program of this kind needs, and nothing about flows: how XLA compiles, and where compiled programs are kept.

`compiler` gives a program its XLA options, `cache` keeps compiled programs between starts, `peaks` knows how fast a GPU
multiplies.
"""
