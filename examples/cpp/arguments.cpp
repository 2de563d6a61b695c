// Shows its arguments, one a line, exactly as they were given.
#include <iostream>

int main(int argc, char **argv)
{
    std::cout << argc - 1 << " argument(s)\n";
    for (int i = 1; i < argc; i++) {
        std::cout << i << ": " << argv[i] << '\n';
    }
}
