"""Which answers equal which references: the rules, one example each, and their properties."""

import pytest

from reward import GradingPolicy, equivalent, grade
from reward.grading import check_gold
from reward.kinds import KINDS, kind_of
from reward.normalize import clean
from reward.verdict import DEFAULT

# (reference, answer)
EQUAL = [
    (r"12\pi", "12pi"),
    (r"\frac{\pi}{2}", "pi/2"),
    (r"\frac{20000}{\pi}", "20000/pi"),
    (r"\sqrt2", "\u221a2"),
    ("x^2", "x\xb2"),
    (r"\infty", "\u221e"),
    (r"\frac12", "\xbd"),
    ("3", "\uff13"),
    ("3", "\u0663"),
    ("-3", "\u20133"),
    ("3", "\u200b3"),
    ("90", "90\xb0"),
    (r"90^\circ", "90\xba"),
    ("-5", "\u22125"),
    (r"\pi", "\u03c0"),
    (r"2\times3", "2\xd73"),
    (r"x\le3", "x\u22643"),
    (r"\pm 3", "\xb13"),
    ("1000", "1\xa0000"),
    (r"\alpha", "\u03b1"),
    (r"90^\circ", r"90\degree"),
    (r"\emptyset", r"\varnothing"),
    ("20", "\\text{\u20ac}20"),
    (r"3\times10^8", "3e8"),
    (r"6.02\times10^{23}", "6.02e23"),
    ("4.6e33", r"4.6\times 10^{33}"),
    ("5", "5."),
    ("3.14", "3.14."),
    ("Navin", "Navin."),
    ("185", "185\\"),
    ("3", "3\\\\"),
    (r"\frac95", "1 4/5"),
    (r"\frac32", "1 1/2"),
    ("1000", r"1\,000"),
    ("1000", "1 000"),
    ("617", "1,234/2"),
    (r"(5,\infty)", "x>5"),
    ("x>5", r"(5,\infty)"),
    ("(-1,1)", r"\{x|-1<x<1\}"),
    (r"4<m\le 8 \text{ or } 10\le m<12", r"(4,8]\cup[10,12)"),
    ("2516_8", "(2516)_8"),
    ("2516_8", r"2516_{\text{base }8}"),
    ("52_8", r"52_{\text{eight}}"),
    ("C", "C. 12"),
    ("C", "(C) 12"),
    ("C", r"\textbf{(C)}"),
    ("2,-1,-18", "a=2, h=-1, k=-18"),
    ("2,4,3", "T(10)=2, T(11)=4, T(12)=3"),
    ("16,3,1,1", "w=16, d=3, a=1, b=1"),
    ("-2,-2", "a=-2, b=-2"),
    ("12", r"12^{\mathrm{th}} grade"),
    ("15", "15th"),
    ("5", r"\text{5 apples}"),
    ("10", "10 weeks"),
    ("100", "100 dollars"),
    (r"\frac13", r"0.\overline{3}"),
    ("2i", r"\sqrt{-4}"),
    ("1+2i", "i(2-i)"),
    (r"\cos x", r"\sin(90^\circ-x)"),
    (r"1/\sqrt n", r"\sqrt{1/n}"),
    ("e^{16}", "exp(16)"),
    (r"\frac{2}{\pi}", r"\frac2\pi"),
    (r"2,3,\frac{3+i\sqrt3}{2},\frac{3-i\sqrt3}2", r"2, 3, \frac{3\pm i\sqrt3}{2}"),
    ("x=-2,1", "x=1 or x=-2"),
    ("5", r"\approx 5"),
    ("x=11", "x = 5+5+1 = 11"),
    ("25%", "0.25"),
    (r"\frac12", r"\frac24"),
    ("10", r"10 \text{ cm}"),
    ("10 cm", "10 centimeters"),
    ("(1,2),(3,4)", "(3,4),(1,2)"),
    (r"\text{yes}", "Yes."),
    ("3:00 PM", "3 p.m."),
    ("x^2+C", "C+x^2"),
    (r"\frac{1}{2}\ln 2", r"\ln\sqrt{2}"),
    (r"\log_{10} 100", "2"),
    ("2^{n+1}", r"2\cdot 2^n"),
    (r"\frac{n!}{(n-2)!}", "n(n-1)"),
    (r"(-\infty,3]", r"x\leq 3"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    ("1,2", "{1,2}"),
    (r"10\%", r"\frac{1}{10}"),
    ("1{,}234", "1234"),
    ("y=x+1", "y = 1 + x"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", "(1,2)"),
    (r"\begin{bmatrix}1&2\end{bmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    (r"(0,1)\cup(1,2)", r"(0,2)\setminus\{1\}"),
    (r"\{1,2\}", r"\{2,1\}"),
    (r"\mathbb{R}", r"(-\infty,\infty)"),
    (r"5\sqrt{2}\text{ cm}", r"5\sqrt{2}"),
    (r"x \neq 1", r"(-\infty,1)\cup(1,\infty)"),
    ("11:30", "11:30 a.m."),
    (r"\$5", "5 dollars"),
    ("3/4", "0.75"),
    ("0.75", r"75\%"),
    (r"2\frac{1}{3}", "7/3"),
    ("7", "seven"),
    (r"\frac{\sqrt3}{2}", "0.8660254"),
    (r"\frac{\pi}{3}", r"\frac{\pi}{3}\text{ radians}"),
    ("(x+2)(x-3)", "x^2-x-6"),
    (r"k\pi, k\in\mathbb{Z}", r"k\pi"),
    ("all real numbers", r"\mathbb{R}"),
    ("no solution", r"\text{No solutions}"),
    (r"120^\circ", "120 degrees"),
    (r"2.5 \times 10^{-3}", "0.0025"),
    ("a_n=2n+1", "2n+1"),
    ("f(x)=2x", "2x"),
    ("a^2b", "ba^2"),
    (r"6 \text{ and } 8", "6,8"),
    (r"x\in[-2,7]", r"-2\le x\le7"),
    (r"\sin^{-1}(1/2)", r"\frac{\pi}{6}"),
    (r"\frac{1}{2}, 2", r"2, \frac12"),
    ("1.5", r"1\frac{1}{2}"),
    ("(3,4)", "x=3, y=4"),
    ("(3,4)", "(x,y)=(3,4)"),
    (r"\frac{a}{b}", "a/b"),
    ("2^{10}", "1024"),
    (r"\left(-\infty,-1\right)\cup\left(1,\infty\right)", r"x<-1 \text{ or } x>1"),
    (r"\text{Tuesday}", "Tuesday"),
    (r"\boxed{5}", "5"),
    ("5!", "120"),
    (r"12 \text{ cm}^2", r"12 \text{ square centimeters}"),
    ("60 mph", r"60 \text{ miles per hour}"),
    ("3.0", "3"),
    ("0.1", "1/10"),
    ("-0", "0"),
    (r"2\sqrt{3}+1", r"1+\sqrt{12}"),
    ("x=2,y=3", "y=3,x=2"),
    ("x=1,x=2", "x = 1, 2"),
    (r"\tfrac{1}{2}(3+\sqrt5)", r"\frac{3+\sqrt{5}}{2}"),
    (r"\{ -1 \}", "-1"),
    ("2023", "$2023$"),
    ("1/3", "0.333333333"),
    (r"\text{A}", "(A)"),
    ("B", "The answer is B"),
    (r"\frac{3}{5}i", "0.6i"),
    ("30", r"30^{\circ}\text{C}"),
    ("(2, 3, 5)", "(2,3,5)"),
    (r"3,\ 5,\ 7", "3, 5, 7"),
    (r"\{1,2\}\cup\{3\}", r"\{1,2,3\}"),
    ("10:20pm", "10:20 p.m."),
    ("4:45 PM", r"4:45 \text{ PM}"),
    (r"1\text{ hour }30\text{ minutes}", "1 hour 30 minutes"),
    (r"\begin{bmatrix}1&0\\0&1\end{bmatrix}", r"\begin{pmatrix}1&0\\0&1\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\langle 1,2\rangle"),
    (r"\left\langle 1,2,3\right\rangle", "(1,2,3)"),
    ("]0,1[", "(0,1)"),
    (r"x\in\{1,2,3\}", "x=1,2,3"),
    (r"y=-\frac14x+2", r"-\frac{x}{4}+2"),
    ("x=4y+3", "x-4y=3"),
    (r"\frac{34}{3}", r"11.\overline{3}"),
    ("10^{-3}", "0.001"),
    (r"\sqrt[3]{2}", "2^{1/3}"),
    (r"3\sqrt[4]{2}", r"3\cdot2^{0.25}"),
    (r"\frac{1}{1+\sqrt2}", r"\sqrt2-1"),
    (r"50\pi\text{ cm}^3", r"50\pi"),
    (r"6\%", "0.06"),
    ("1:2", "1/2"),
    ("2:3:4", "2:3:4"),
    (r"-\frac{7}{3}", r"-2\frac{1}{3}"),
    ("a+b", "b + a"),
    (r"\text{Thursday}", "thursday"),
    (r"\text{(D)}", "D"),
    ("E", r"\text{(E) 5}"),
    (r"\frac{x^2}{4}-\frac{y^2}{9}=1", "9x^2-4y^2=36"),
    ("(x-1)^2+(y+2)^2=9", "x^2-2x+y^2+4y=4"),
    ("2x-y=3", "y=2x-3"),
    (r"\{x \in \mathbb{R} : x > 2\}", r"(2,\infty)"),
    (r"\{x\mid x\ge 2\}", r"[2,\infty)"),
    (r"(-\infty,1)\cup(2,\infty)", "x<1, x>2"),
    ("x<1 or x>2", r"(-\infty,1)\cup(2,\infty)"),
    ("-1<x<1", "|x|<1"),
    (r"x\ge 2 \text{ or } x\le -2", r"|x|\ge2"),
    ("n!", r"n\cdot(n-1)!"),
    (r"\binom{n}{2}", r"\frac{n(n-1)}{2}"),
    ("2^{2n}", "4^n"),
    (r"\log_2 3", r"\frac{\ln 3}{\ln 2}"),
    (r"\sin 2x", r"2\sin x\cos x"),
    (r"\cos^2 x", r"\frac{1+\cos 2x}{2}"),
    (r"e^{i\pi}", "-1"),
    ("(a-b)(a+b)", "a^2-b^2"),
    (r"\frac{a}{b}\div\frac{c}{d}", r"\frac{ad}{bc}"),
    (r"0.5\text{ m/s}", "0.5"),
    (r"30 \mathrm{~m/s}", r"30\text{ m/s}"),
    (r"9.8 \mathrm{m} \mathrm{s}^{-2}", "9.8"),
    (r"1.5\times10^{-5}\,\mathrm{m}", "1.5e-5"),
    ("6.02*10^23", r"6.02\times10^{23}"),
    (r"1.0\cdot 10^{3}", "1000"),
    ("$1,234.50", "1234.5"),
    ("1 234 567", "1,234,567"),
    (r"x = \pm 2", "x=2, x=-2"),
    (r"x=\pm2", r"\{-2,2\}"),
    (r"\pm\sqrt{2}", r"\sqrt2,-\sqrt2"),
    (r"\frac{-1\pm\sqrt{5}}{2}", r"\frac{-1+\sqrt5}{2}, \frac{-1-\sqrt5}{2}"),
    ("(2,3),(\u22121,4)", "(-1,4), (2,3)"),
    ("x=1, y=2", "(1,2)"),
    ("(x,y,z)=(1,2,3)", "x=1,y=2,z=3"),
    ("a=1,b=2,c=3", "1, 2, 3"),
    (r"\text{The sum is }5", "5"),
    ("5 units", "5"),
    (r"5 \text{ units}^2", "5"),
    (r"\angle A = 30^\circ", r"30^\circ"),
    (r"m\angle ABC=45^{\circ}", "45"),
    (r"\sin\theta=\frac12", r"\frac12"),
    ("P(A)=0.25", r"\frac14"),
    (r"\frac{2}{3}\approx0.667", r"\frac23"),
    (r"\approx 3.14", "3.14"),
    ("x^{2}y", "yx^2"),
    ("3x^{2}", "3x\xb2"),
    (r"4\frac{1}{2}\text{ hours}", "4.5"),
    (r"60 \text{ minutes}", "60"),
    ("100_{10}", "100"),
    ("11_2", "11_{2}"),
    (r"\text{True}", "true"),
    (r"\infty", r"+\infty"),
    (r"-\infty", "\u2212\u221e"),
    (r"\text{undefined}", "undefined"),
    (r"\frac{\sqrt{6}-\sqrt{2}}{4}", r"\sin 15^\circ"),
    (r"\cos\frac{\pi}{5}", r"\frac{1+\sqrt5}{4}"),
    (r"\ln 8", r"3\ln 2"),
    (r"\lg 100", "2"),
    ("\\tan 45\xb0", "1"),
    ("[2,3)", r"2\le x<3"),
    (r"\{2\}", "x=2"),
    (r"\{(1,2),(3,4)\}", "(1,2),(3,4)"),
    (r"\{0\}", "0"),
    ("abc", "cba"),
    ("xyz", "x y z"),
    ("f(x)=3x", "f(x) = 3 x"),
    (r"\frac{d}{dx}", r"\frac{d}{dx}"),
    (r"2\mathbf{i}+3\mathbf{j}", r"3\mathbf{j}+2\mathbf{i}"),
    (r"\frac{3}{4}\text{ of a cup}", r"\frac34"),
    ("a_{n}=2n-1", "a_n=2n-1"),
    ("S_n=n^2", "n^{2}"),
    (r"0.\dot{3}", "1/3"),
    ("0.(27)", "3/11"),
    (r"0.1\overline{6}", r"\frac16"),
    ("(\u2212\u221e, 5]", r"x \le 5"),
    (r"\{n : n \ge 3\}", r"n\geq 3"),
    (r"\frac{1}{x}", "x^{-1}"),
    (r"\sqrt{x^2+1}", "(x^2+1)^{1/2}"),
    ("|x-2|", "|2-x|"),
    (r"\max(a,b)", r"\max(b,a)"),
    (r"1/6\pi", r"\frac{\pi}{6}"),
    (r"\frac16\pi", r"\pi/6"),
    ("8!!", "384"),
    ("10,000", "10000.0"),
    (r"2,000 \text{ dollars}", r"\$2000"),
    (r"5\times 6", "30"),
    ("ABCD", "ABCD"),
    ("12 inches", "12 in"),
    ("3 + 4i", "4i+3"),
    ("3-2i", "-2i+3"),
    (r"\frac{1+i}{2}", "0.5+0.5i"),
    (r"\bar{z}", r"\overline{z}"),
    ("-x^2+4x", "x(4-x)"),
    ("(x-3)(x+3)", "(x+3)(x-3)"),
    ("Kafelnikov", r"\text{Kafelnikov}"),
    (r"12\text{ and }-3", "-3,12"),
    (r"\frac{5}{2}, -1", r"x=-1 \text{ or } x = 2.5"),
    (r"5^{\text{th}}", "5"),
    ("6^{th}", "6"),
    ("1st", "1"),
    ("2,-1", "x_1=2,x_2=-1"),
    ("y=2x", "y-2x=0"),
    ("k>0", "0<k"),
    ("a>b", "b<a"),
    (r"2<a\leqslant 3", "(2,3]"),
    (r"a\in(2,3]", r"2<a\le3"),
    (r"\mathbb{R}\setminus\{0\}", r"x\neq0"),
    (r"\mathbb{R}\setminus\{0\}", r"(-\infty,0)\cup(0,\infty)"),
    (r"1 < x \text{ and } x<3", "(1,3)"),
    (r"\frac{1}{2}x^{2}+C", r"\frac{x^2}{2}+C"),
    (r"7 \frac{1}{2}\%", r"7.5\%"),
    ("0.075", r"7.5\%"),
    (r"\$0.06", "0.06"),
    (r"6\text{ cents}", "6"),
    (r"45^{\circ}, 45^{\circ}, 90^{\circ}", "45,45,90"),
    ("two", "2"),
    ("2", r"\text{two}"),
    ("-5\\text{\xb0C}", "-5"),
    (r"x \equiv 3 \pmod{7}", r"x\equiv 3\pmod 7"),
    (r"3 \pmod 7", r"3\pmod{7}"),
    ("n^2+n", "n(n+1)"),
    (r"20\text{ m}^2", "20 m^2"),
    (r"20\text{ square meters}", "20 m^2"),
    (r"3\text{ feet}", r"3\text{ ft}"),
    (r"\frac{\pi}{2}\text{ radians}", r"\frac{\pi}{2}"),
]

DIFFERENT = [
    ("3", "4=3"),
    ("3", "1=2=3"),
    ("3", "x=4=3"),
    ("x+y=1", "1"),
    ("7 = 11a+c", "11a+c"),
    ("(1,2)", r"\{1,2\}"),
    ("16,3,1,1", "16,3,3,1"),
    ("3", "[3,3]"),
    (
        r"40 \text{ chocolate}, 60 \text{ x}, 10 \text{ y}",
        r"40 \text{ chocolate}, 50 \text{ x}, 20 \text{ y}",
    ),
    ("12:05", "12/5"),
    ("3", r"3 \text{ or } 4"),
    ("42", "0,1,2,42"),
    ("5", r"\infty"),
    ("5", "1/0"),
    ("5", "0/0"),
    ("5", "nan"),
    ("52_8", "52_9"),
    (r"1.6\times10^{-19}", r"1.7\times10^{-19}"),
    ("east", "seat"),
    ("no", "on"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    ("0.75", "75"),
    ("[a,b]", "(a,b)"),
    ("1,2,2", "1,2"),
    ("2", "2k"),
    ("15 cm^2", "15 cm^3"),
    ("x", "|x|"),
    ("(1,2]", "(1,2)"),
    ("x<3", r"x\le3"),
    ("C", "A, B, C"),
    ("C", "B or C"),
    (r"\sqrt{2}", "1.414"),
    ("2/3", "0.66"),
    ("10", "1 0"),
    ("12", "1,2"),
    (r"\frac{1}{2}", r"-\frac12"),
    ("yes", "yes and no"),
    ("x=3", "y=3"),
    ("f(x)=2x", "f(x)=3x"),
    ("even", "odd or even"),
    (r"\text{not odd}", "odd"),
    (r"2\sqrt3", r"2\sqrt[3]{3}"),
    ("x^2", "x^3"),
    ("5", "x+5-x=6"),
    ("10", r"10\%"),
    ("1000", "1"),
    ("1,000", "1"),
    (r"\pm3", "3"),
    ("3", r"\pm3"),
    ("1", "i^2"),
    ("2^{100}", "2^{100}+1"),
    ("(1,2)", "(2,1)"),
    (r"\frac{9}{19}", r"\frac919"),
    ("100", "10^{2.0001}"),
    ("5", "n>5"),
    (r"\cos x", r"\sin x"),
    ("123", "1 2 3"),
    ("n!", "n"),
    (r"\text{January 5}", "5"),
    ("3", r"\text{three or four}"),
    ("2x", r"2\times"),
    ("3", "3,3"),
    ("3", "3=3=4"),
    ("3", r"3 \ne 4"),
    ("3", "3<4"),
    (r"\{1,2,3\}", r"\{1,2,3,4\}"),
    ("0", r"\emptyset"),
    (r"\emptyset", "0"),
    ("(2,3)", "[2,3]"),
    ("a", "A"),
    ("0", "0.0000001"),
    ("e", "2.7"),
    ("3", r"3 \text{ is wrong, it is } 4"),
    ("3", r"\text{not } 3"),
    ("3", r"3 \text{ or more}"),
    ("3", "at least 3"),
    ("3", "at most 3"),
    ("3", r"-3 \text{ or } 3"),
    ("3", "3?"),
    ("3", "3...5"),
    ("3", "3-4"),
    ("3", r"\overline{3}"),
    ("3", "3'"),
    ("3", r"3^\circ C or 4"),
    ("3", "3_4"),
    ("3", "a_3"),
    ("x=3", r"x\ne3"),
    ("3", r"3\pm1"),
    ("3", "[3]4"),
    (r"5 \text{ km}", r"5 \text{ m}"),
    ("[0,1]", "[1,0]"),
    ("(0,1)", "]0,1]"),
    ("2:3", "3:2"),
    ("x^2+y^2=1", "x^2+y^2=2"),
    ("x>2", r"x\geq2"),
    (r"\{1,2\}", r"\{1\}"),
    (r"1\text{ hour }30\text{ minutes}", "1 hour 40 minutes"),
    ("4:45 PM", "4:45 AM"),
    ("y=2x", "y=3x"),
    ("f(x)=x", "f(x)=-x"),
    ("a>b", "a<b"),
    ("11_2", "11_3"),
    (r"\sin 15^\circ", r"\sin 15"),
    ("|x|<1", "|x|>1"),
    ("ABCD", "ABDC"),
    (r"2\mathbf{i}+3\mathbf{j}", r"3\mathbf{i}+2\mathbf{j}"),
    (r"\text{Monday}", r"\text{Sunday}"),
    ("x=1,y=2", "x=2,y=1"),
    ("(x,y)=(1,2)", "(2,1)"),
    ("a=1,b=2", "b=1,a=2"),
    ("C_5^2", "20"),
    (r"\log_2 3", r"\log_3 2"),
    (r"60\text{ minutes}", r"60\text{ hours}"),
    (r"5\text{ dollars}", r"5 \text{ cents}"),
    (r"x\equiv3\pmod 7", r"x\equiv4\pmod 7"),
    ("-5", "5"),
    ("1.0e-5", "1.0e-6"),
    (r"\max(a,b)", r"\min(a,b)"),
    (r"\overline{z}", "z"),
    (r"\frac{1}{2}x^{2}+C", r"\frac{x^2}{3}+C"),
    ("3", r"\frac{9}{3}+0.00001"),
    ("n(n+1)", "n(n-1)"),
    (r"\vec{a}", r"\vec{b}"),
    (r"A\cup B", r"A\cap B"),
    (r"\neg p", "p"),
    (r"p\to q", r"q\to p"),
    (r"p \land q", r"p\lor q"),
    (r"\{n: n\ge3\}", r"\{n:n>3\}"),
    ("2x", "2^x"),
    ("100!", "100"),
    ("e^x", "x^e"),
    ("1/(2x)", "1/2x+1"),
    ("1,2;3,4", "1,3;2,4x"),
    (r"\ldots", r"1,2,\ldots"),
    (r"1,2,\ldots,10", r"1,2,\ldots,11"),
    (r"50\%", r"5\%"),
    (r"90^\circ", r"90\%"),
    (r"\text{no}", r"\text{yes}"),
    ("Tom", "Tim"),
    (r"3\sqrt2", r"2\sqrt3"),
    ("x^3", "3x"),
    (r"\frac{a}{b}", r"\frac{b}{a}"),
    ("a-b", "b-a"),
    ("i", "1"),
    ("-i", "i"),
    (r"\{\emptyset\}", r"\emptyset"),
    ("(0,0)", "0"),
    ("0", "(0,0)"),
    ("(3)", "3,3"),
    (r"\text{A and B}", r"\text{A or B}"),
    (r"1+\sqrt2", r"1-\sqrt2"),
    (r"1\pm\sqrt2", r"1+\sqrt2"),
    (r"3 \text{ m}", r"3 \text{ m/s}"),
    ("1", r"\frac{0}{0}"),
    (r"\infty", r"-\infty"),
    (r"\infty", r"\frac{1}{0}"),
    (r"2^{N-2}", r"0^{N-2}"),
    (r"\lfloor\sqrt{n-1}\rfloor", r"\lfloor n-1\rfloor"),
    (r"\text{(B)}", r"\text{(B)}+1"),
    (r"\text{yes}", r"\text{yes or no}"),
    ("I(0)", "0"),
    ("4.123105625617661", "4.123105625617665"),
    ("2400", r"\begin{matrix}2\\4\end{matrix}"),
]


def boxed(answer):
    return f"so \\boxed{{{answer}}}"


@pytest.mark.parametrize(("gold", "pred"), EQUAL)
def test_equal_answers_are_accepted(gold, pred):
    verdict = equivalent(pred, gold)
    assert verdict.correct, verdict
    assert verdict.status == "ok"


@pytest.mark.parametrize(("gold", "pred"), DIFFERENT)
def test_different_answers_are_refused(gold, pred):
    assert not equivalent(pred, gold).correct
    assert not grade(boxed(pred), gold).correct


GOLDS = sorted({gold for gold, _ in [*EQUAL, *DIFFERENT]})


@pytest.mark.parametrize("gold", GOLDS)
def test_every_answer_equals_itself_in_any_dress(gold):
    for dressed in (gold, f"${gold}$", f" {gold} ", f"\\boxed{{{gold}}}", f"\\({gold}\\)."):
        if not gold.endswith("\\"):
            assert equivalent(dressed, gold).correct, dressed


SYMMETRIC = [
    pair
    for pair in EQUAL
    if kind_of(clean(pair[0]))[0] in ("integer", "fraction", "constant", "interval", "tuple", "set")
]


@pytest.mark.parametrize(("gold", "pred"), SYMMETRIC)
def test_values_and_sets_may_change_places(gold, pred):
    if "%" not in gold + pred and "text" not in pred and not pred[-1:].isalpha():
        assert equivalent(gold, pred).correct


DEGENERATE = [
    "", " ", ".", ",", "$", "{}", "()", "[]", "\\{\\}", "\\", "\\,", "\\quad", "\\text{}", "?", "!",
    "-", "+", "=", "ANSWER", "answer", "\\text{your answer}", "None", "null", "nan", "NaN", "oo",
    "inf", "\\infty", "\\ldots", "...", "\\mathbb{R}", "any", "x", "n", "i", "I", "e", "pi", "True",
    "1=1", "0=0", "x=x", "lambda: 1", "\\text{all of the above}", "\\emptyset", "1/0", "0/0",
    "\\cdot", "<", "\\frac{}{}", "|", "%", "answer explanation", "<b></b>", "\\boxed{}",
]  # fmt: skip


@pytest.mark.parametrize("answer", DEGENERATE)
def test_degenerate_answers_are_right_for_nothing(answer):
    for gold in (
        "3",
        r"\frac{1}{2}",
        r"\sqrt{2}",
        "(1,2)",
        "x+1",
        "1,2",
        "2x+3y=1",
        "east",
        "[0,1)",
    ):
        assert not equivalent(answer, gold).correct, gold
        assert not grade(boxed(answer), gold).correct, gold


HEDGES = [
    "3 or 4", "3, 4", "3 and 4", r"3 \text{ or } 4", r"\{3,4\}", "3/4", "3 4", "3;4", "3|4",
    r"3\\4", r"3 \quad 4", "x=3 or x=4", r"\begin{cases}3 & x>0\\4 & x\le0\end{cases}",
    r"3\text{ (or 4)}", "3 (or 4)", "3 (maybe 4)", r"\text{3 or 4}", r"\text{between 3 and 4}",
    "3-4", "between 3 and 4", "3 to 4", "3..4", r"\ge 3", "\u2264 3", "3+", r"3 \pm 0.1", "3=3=4",
    r"3 \ne 4", "3 < 4",
    r"3 \in \{3,4\}", r"\{3\} \cup \{4\}", "3%", "$3$ or $4$",
    r"\text{not }3", r"3\text{ is wrong}", "3ae", "3xEe",
    r"\text{the answer is not }3", "the answer is 4, not 3", "answer is 3 or 4", "3k", "3?",
    "three or four", "3.000000001", r"3 \text{ apples or oranges}", "3 apples and 4 oranges",
    "Case 1: 3 Case 2: 4", "Case 1: 3, Case 2: 4", r"4 \boxed{3}", r"\boxed{3}\boxed{4}",
    r"\phantom{4}3", r"3 \qquad \text{(A) } 4", "x+y=3", "2x=6", "2+2=3", r"\int_0^3 dx", "\u00b3",
    "3_4", "3'", r"\overline{3}", "x=4=3", r"3\text{ if } x>0, 4\text{ otherwise}",
]  # fmt: skip


@pytest.mark.parametrize("answer", HEDGES)
def test_hedged_and_half_right_answers_are_refused(answer):
    assert not grade(boxed(answer), "3").correct


def test_listing_answers_does_not_pay():
    everything = ", ".join(map(str, range(200)))
    for answer in (
        everything,
        f"\\{{{everything}\\}}",
        everything.replace(", ", " or "),
        f"({everything})",
    ):
        assert not equivalent(answer, "42").correct
        assert not grade(boxed(answer), "42").correct


def test_a_sentence_in_a_box_is_no_licence_to_guess():
    assert not grade(boxed(r"\text{I tried } 1, 2 \text{ and } 3"), "3").correct
    assert not grade(boxed("it could be 1 or 2 or 3"), "3").correct
    assert equivalent("I think that the answer is 3.", "3").correct


POLICIES = [
    ("10%", "10", GradingPolicy(percent="both"), True),
    ("10%", "10", DEFAULT, False),
    ("10", "10%", DEFAULT, True),
    ("0.1", "10%", DEFAULT, True),
    ("10", "10%", GradingPolicy(percent="value"), False),
    (r"\frac{2}{4}", r"\frac{1}{2}", GradingPolicy(unreduced_fractions=False), False),
    ("3, 1, 2", "1, 2, 3", DEFAULT, True),
    ("3, 1, 2", "1, 2, 3", GradingPolicy(ordered_lists=True), False),
    ("0.333", r"\frac{1}{3}", DEFAULT, False),
    ("0.333", r"\frac{1}{3}", GradingPolicy(relative_tolerance=1e-2), True),
    (r"\frac{1587}{52}", "30.52", DEFAULT, False),
    (r"\frac{1587}{52}", "30.52", GradingPolicy(round_to_gold=True), True),
    (r"\pi", "3.14", GradingPolicy(round_to_gold=True), True),
    (r"\pi", "3.15", GradingPolicy(round_to_gold=True), False),
    (r"1.64 \times 10^{-19}", r"1.6 \times 10^{-19}", GradingPolicy(round_to_gold=True), True),
    (r"1.66 \times 10^{-19}", r"1.6 \times 10^{-19}", GradingPolicy(round_to_gold=True), False),
    (r"10 \text{ cm}", "10", GradingPolicy(units="strict"), False),
    ("52", "52_8", DEFAULT, True),
    ("52", "52_8", GradingPolicy(base_required=True), False),
    ("x = 4 = 3", "3", GradingPolicy(chain="last"), True),
    ("2,74", "2.74", GradingPolicy(decimal_comma=True), True),
    ("1,2", "(1,2)", DEFAULT, True),
    ("1,2", "(1,2)", GradingPolicy(tuple_without_brackets=False), False),
    (r"\{1,2\}", "(1,2)", GradingPolicy(set_for_tuple=True), True),
]


@pytest.mark.parametrize(("pred", "gold", "policy", "correct"), POLICIES)
def test_each_policy_decides_its_own_question(pred, gold, policy, correct):
    assert equivalent(pred, gold, policy).correct == correct


def test_extraction_policies_reach_the_verdict():
    assert not grade("Answer: 3", "3").correct
    assert grade("Answer: 3", "3", GradingPolicy(extraction="marked")).correct
    assert grade("it is 3", "3", GradingPolicy(extraction="last_number")).correct
    assert grade("it is $x^2$ then", "x^2", GradingPolicy(extraction="last_math")).correct
    assert grade("it is [3].", "3", GradingPolicy(extraction="bracketed")).correct
    assert grade(r"\boxed{2}, \boxed{3}", "3,2", GradingPolicy(join_boxes=True)).correct


@pytest.mark.parametrize("gold", ["", " ", "$$", "\\boxed{}", ".", "{}"])
def test_an_unusable_reference_is_an_error_of_the_data(gold):
    assert check_gold(gold)
    assert equivalent("3", gold).status == "unparsable_gold"
    assert not equivalent(gold, gold).correct


def test_statuses_tell_why_there_is_no_verdict():
    assert grade("no box", "3").status == "no_answer"
    assert equivalent("9^{9^{9}}", "3").status == "unparsable_pred"
    assert equivalent("x" * 5000, "3").status == "unparsable_pred"
    assert equivalent("1" * 5000, "1" * 5000).correct


KIND_EXAMPLES = {
    "integer": "-3", "decimal": "0.5", "fraction": r"\frac{1}{2}", "scientific": "3e8",
    "constant": r"2\pi", "complex": "1+2i", "degree": r"90^\circ", "percent": r"25\%",
    "unit": r"5\text{ cm}", "expression": "x+1", "equation": "x+y=1", "assignment": "x=3",
    "inequality": "x<3", "interval": "[0,1)", "tuple": "(1,2)", "set": r"\{1,2\}",
    "list": "1,2", "matrix": r"\begin{pmatrix}1\\2\end{pmatrix}", "choice": "(C)",
    "base": "52_8", "time": "12:05", "text": r"\text{east}",
}  # fmt: skip


def test_every_kind_has_its_example():
    assert {kind_of(clean(text))[0]: text for text in KIND_EXAMPLES.values()} == KIND_EXAMPLES
    assert set(KIND_EXAMPLES) == set(KINDS)


INJECTIONS = [
    "__import__('os').system('touch hacked')",
    "().__class__.__bases__[0].__subclasses__()",
    "open('hacked','w').write('x')",
    "exec('import os; os.mkdir(\\'hacked\\')')",
    "lambda: (_ for _ in ()).throw(SystemExit)",
    r"\write18{touch hacked}",
    r"\input{/etc/passwd}",
    "{{7*7}}",
    "$(touch hacked)",
    "S(1).__class__",
]


@pytest.mark.parametrize("code", INJECTIONS)
def test_code_in_an_answer_is_never_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for gold in ("3", "x+1", code + "1"):
        assert not grade(boxed(code), gold).correct
    assert not list(tmp_path.iterdir())
