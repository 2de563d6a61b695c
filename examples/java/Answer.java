// Reads names line by line and answers each at once, until the input ends.
import java.util.Scanner;

public class Answer {
    public static void main(String[] args) {
        Scanner input = new Scanner(System.in);
        int count = 0;
        while (input.hasNextLine()) {
            System.out.println("Hello, " + input.nextLine() + "!");
            count++;
        }
        System.out.println(count + " answered.");
    }
}
