"""An arm64 machine inside this one, with the emulator of user programs (qemu-user), to run this checkout and its tests.

    machine      its root: a base system of the distribution and the Python packages, made once; commands inside
    __main__     the command line: tools/arm64

Nothing is installed here, and nothing is left in the kernel: the emulator is unpacked beside the root, and the kernel
learns of it in a user namespace of its own (binfmt_misc, since Linux 6.7).

It shows that the program works with the system calls, packages, structs and byte code of the other machine. It shows
nothing about the order of loads and stores: the emulator maps those of arm64 to those of this machine, which keeps more
order.
"""
