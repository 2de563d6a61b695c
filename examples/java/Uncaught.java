// Ends with an exception that nobody catches: exit code 1 and a stack trace.
public class Uncaught {
    public static void main(String[] args) {
        int[] numbers = new int[2];
        System.out.println(numbers[2]);
    }
}
