"""Evaluation of a trained network: likelihood, samples, their judge, and the reports.

evaluate     all of it for one run; settings  what is evaluated, from a config
network      how a model is asked; the compiled program of a batch
likelihood   bounds on -log p of a corpus; points  where they are evaluated
loss         the training objective on a corpus, with fixed noise
generation   samples; prompts  text with gaps; diversity  how varied samples are
judge/       generative perplexity
report/      files for people to read
"""
