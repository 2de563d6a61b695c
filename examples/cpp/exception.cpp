// Ends with an exception that nobody catches: ended by signal 6 (a shell shows 134).
#include <stdexcept>

int main()
{
    throw std::runtime_error("nobody catches this");
}
