/** Run by the build on the JDK it chose: names a defect of its early updates. */
class CheckJdk {
    public static void main(String[] args) {
        Runtime.Version version = Runtime.version();
        if (version.compareToIgnoreOptional(Runtime.Version.parse("25.0.3")) < 0) {
            System.out.println("[WARNING] JDK " + version + " in " + System.getProperty("java.home")
                    + " can corrupt data under G1 (JDK-8377811); 25.0.3 or newer cannot:"
                    + " sdk install java 25.0.3-tem, or https://adoptium.net");
        }
    }
}
