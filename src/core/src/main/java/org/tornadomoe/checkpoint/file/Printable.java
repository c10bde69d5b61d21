package org.tornadomoe.checkpoint.file;

import org.jspecify.annotations.Nullable;

/**
 * Text for people that holds what a file says: names and values that anybody may have chosen, so that they may not
 * steer a terminal or fill it.
 */
public final class Printable {
    private static final int LONGEST = 2000;
    private static final int HEAD = 1200;
    private static final int TAIL = 400;

    private Printable() {}

    /**
     * The text with every control character but line feed and tab, and every character that changes the direction of
     * others, as {@code \}{@code u001b}: inside JSON's strings that means the same.
     */
    public static String visible(String text) {
        if (text.chars().noneMatch(Printable::steers)) {
            return text;
        }
        StringBuilder visible = new StringBuilder(text.length() + 16);
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            if (steers(c)) {
                visible.append(String.format("\\u%04x", (int) c));
            } else {
                visible.append(c);
            }
        }
        return visible.toString();
    }

    private static boolean steers(int c) {
        boolean lines = c == 0x2028 || c == 0x2029;
        boolean direction = (c >= 0x202A && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069) || c == 0x200E || c == 0x200F;
        return lines || direction || (Character.isISOControl(c) && c != '\n' && c != '\t');
    }

    /** A message, visible, and without its middle where it is longer than anybody reads. */
    public static String message(@Nullable String text) {
        String whole = String.valueOf(text);
        if (whole.length() <= LONGEST) {
            return visible(whole);
        }
        int left = whole.length() - HEAD - TAIL;
        return visible(whole.substring(0, HEAD)) + " ... (" + left + " characters) ... "
                + visible(whole.substring(whole.length() - TAIL));
    }
}
