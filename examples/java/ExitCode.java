// Says why on standard error and ends with exit code 3.
public class ExitCode {
    public static void main(String[] args) {
        System.err.println("Something is wrong: ending with 3.");
        System.exit(3);
    }
}
