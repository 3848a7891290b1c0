"""Labs that are given to others: a lab with all that it is made from, in one folder or archive. What comes from elsewhere is
looked into before anything of it is kept."""
