"""What an evaluation leaves for people to read.

markdown   tables of a run's figures, of several runs side by side, and their JSON
samples    texts as .txt, .jsonl and a page
page       the page that plays samples, without network
curves     the loss of a run; pictures   bounds by time, quality against diversity
"""
