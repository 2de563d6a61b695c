// Prints COUNT lines (15), one every DELAY milliseconds (200). It never flushes: the lines must come one by one anyway.
#include <chrono>
#include <iostream>
#include <string>
#include <thread>

int main(int argc, char **argv)
{
    const int count = argc > 1 ? std::stoi(argv[1]) : 15;
    const int delay = argc > 2 ? std::stoi(argv[2]) : 200;
    for (int i = 1; i <= count; i++) {
        std::cout << "tick " << i << " of " << count << '\n';
        std::this_thread::sleep_for(std::chrono::milliseconds(delay));
    }
}
