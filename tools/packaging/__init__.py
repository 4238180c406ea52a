"""Packages of this program: a wheel, a Debian package, a container image. `tools/package` is the command.

    wheel.py         the wheel, from the files that git has
    deb.py           the Debian package: an environment of its own on the distribution's interpreter
    debian/          the scripts of that package
    manual.py        man page and shell completion, made from the parser of the command
    container.py     the folder from which the image is built

Not here: the unit and the system user, which an installation without a package needs too (pipeline/service).
"""
