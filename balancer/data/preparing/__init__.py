"""Prepare a table as a store on disk, in bounded memory and in tasks that any process can run.

Public name: `prepare_store` (`store_writing`). Each stage of it is a list of numbers and a plain function of
(folder, number); what a task needs and what it makes are files, so tasks can run here, in other processes or
on other machines that share the folder, and a finished task is not run again.
"""
