"""People in the loop: what page.py serves (server), hands out (desk), keeps (store), reports."""
