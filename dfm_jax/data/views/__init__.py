"""What is read of prepared folders: how a folder is opened, records as rows, and corpora mixed by weight."""
