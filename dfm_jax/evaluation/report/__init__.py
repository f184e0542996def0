"""The files of an evaluation that people read.

markdown   tables of a run's figures, of several runs side by side, and their JSON
samples    samples as .txt, .jsonl and a page
page       the page that plays samples; it works offline
curves     the loss of a run; pictures   bounds by time, quality against diversity
"""
