# Says why on standard error and ends with exit code 3.
echo "Something is wrong: ending with 3." >&2
exit 3
