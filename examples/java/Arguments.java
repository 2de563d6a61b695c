// Shows its arguments, one a line, exactly as they were given.
public class Arguments {
    public static void main(String[] args) {
        System.out.println(args.length + " argument(s)");
        for (int i = 0; i < args.length; i++) {
            System.out.println((i + 1) + ": " + args[i]);
        }
    }
}
