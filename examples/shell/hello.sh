# The smallest program.
echo "Hello from the shell!"
