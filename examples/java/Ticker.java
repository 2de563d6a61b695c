// Prints COUNT lines (15), one every DELAY milliseconds (200).
public class Ticker {
    public static void main(String[] args) throws InterruptedException {
        int count = args.length > 0 ? Integer.parseInt(args[0]) : 15;
        int delay = args.length > 1 ? Integer.parseInt(args[1]) : 200;
        for (int i = 1; i <= count; i++) {
            System.out.println("tick " + i + " of " + count);
            Thread.sleep(delay);
        }
    }
}
