"""A team: the processes of a mesh, which load one model together, or none of them does.

They talk through the key-value store of JAX's coordination service (`store`), in which every process has one thread
that writes what it says, shows that it is alive, and looks for what others say (`exchange`):

    lazyload/teams/<team>/<call>/says/<stage>/<process>/value   what a process says at a stage of a call
                                /failed/<process>               what it has raised
    lazyload/lives/<process>/<call>                             a sign of life, a new one each second

The first process of the team speaks for it; the others compare what it says with what they know, and it tells all of
them how that came out (`call`). So a fleet of N exchanges a few N messages, and each of them waits for one other.
"""
