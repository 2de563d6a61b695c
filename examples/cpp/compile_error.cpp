// Does not compile: the compiler's own words must reach the reader.
#include <iostream>
#include <string>

int main()
{
    std::string answer = 42;
    std::cout << answer << '\n';
}
