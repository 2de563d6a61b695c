// What Main uses: makes a greeting.
class Greeter {
    private final String word;

    Greeter(String word) {
        this.word = word;
    }

    String greet(String name) {
        return word + ", " + name + "!";
    }
}
