// Does not compile: the compiler's own words must reach the reader.
public class CompileError {
    public static void main(String[] args) {
        int answer = "42";
        System.out.println(answer);
    }
}
