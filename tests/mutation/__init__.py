"""Try small changes of the executor and of the claims, one after the other: each must make a test or a history fail.

operators ─► mutants of functions ─┐
scripts   ─► mutants of Lua       ─┴─► judge: a process for each mutant; the tests that reach the changed statement,
                                              the quickest first; then histories that reach it ─► killed or survived

mutants   what is mutated, and the sample
tracing   which statements each test and each history reaches
judge     the processes
report    how many were killed, and which survived

`make mutants` runs a sample. A mutant is made in a process that has imported everything: it replaces the code of one
function there, so that most of them take a part of a second.
"""
