# Ends with an exception that nobody catches: exit code 1 and a traceback.
def half(number):
    return number / 0


print(half(4))
