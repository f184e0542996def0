"""Reading a compiled program: `text` (computations, instructions, how often each runs), and from it

buffers       what lies in memory at its fullest
arithmetic    operations and bytes of every kernel
collectives   what devices send each other
"""
