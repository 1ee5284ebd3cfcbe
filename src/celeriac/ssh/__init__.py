"""Start workers on other machines by ssh, watch them and end them.

hosts.py    the file of hosts
process.py  one worker: its ssh, the lines that it writes, and when it is started again
starter.py  all of them, in one loop without threads
orders.py   the other side: the worker's settings and the order to end, from standard input
"""
