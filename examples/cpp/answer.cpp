// Reads names line by line and answers each at once, until the input ends.
#include <iostream>
#include <string>

int main()
{
    int count = 0;
    for (std::string line; std::getline(std::cin, line); count++) {
        std::cout << "Hello, " << line << "!\n";
    }
    std::cout << count << " answered.\n";
}
