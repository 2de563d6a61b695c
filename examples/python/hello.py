# The smallest program.
print("Hello from Python!")
