# Reads names line by line and answers each at once, until the input ends.
count=0
while IFS= read -r line; do
    echo "Hello, $line!"
    count=$((count + 1))
done
echo "$count answered."
