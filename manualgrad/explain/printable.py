"""Names that come from outside, made safe to print: of layers, parameters, files, classes in a checkpoint."""

LONGEST = 100  # characters: about a line of a terminal


def printable(name: str, longest: int = LONGEST) -> str:
    """`name` as it can be printed anywhere: on one line, at most `longest` characters, and nothing a terminal acts on.

    Control characters (escape codes, carriage returns, line breaks), marks that turn the direction of the text and other
    invisible characters appear as their escapes: "\\x1b", "\\n", "\\u202e". Of a name that is too long the middle is left
    out. Any other name is returned as it is.
    """
    if not name.isprintable():
        name = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name)
    if len(name) <= longest:
        return name
    head = (longest - 3) // 2
    return f"{name[:head]}...{name[len(name) - (longest - 3 - head) :]}"
