// A program of several files: sent as a folder, compiled together.
public class Main {
    public static void main(String[] args) {
        Greeter greeter = new Greeter("Hello");
        System.out.println(greeter.greet(args.length > 0 ? args[0] : "world"));
    }
}
