# An index of commands; each is one line that anybody can also type.
