// Says why on standard error and ends with exit code 3.
#include <iostream>

int main()
{
    std::cerr << "Something is wrong: ending with 3.\n";
    return 3;
}
