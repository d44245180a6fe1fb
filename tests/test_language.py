"""The language of captions, and the warning where Punkt's parameters are for another one."""

import pytest

from goal import language

CAPTIONS = {
    "english": "A red car stands on the left of the road. The sky is blue and there are trees behind it.",
    "german": "Ein rotes Auto steht auf der linken Seite. Der Himmel ist blau und die Bäume sind grün.",
    "french": "Une voiture rouge est garée dans la rue. Le ciel est bleu et les arbres sont verts.",
    "spanish": "Un coche rojo está en la calle. El cielo es azul y los árboles son verdes, con una casa.",
    "italian": "Una macchina rossa è sulla strada. Il cielo è blu e gli alberi della piazza sono verdi.",
    "portuguese": "Um carro vermelho com uma roda. O céu é azul e os prédios da rua em frente do rio.",
    "dutch": "Een rode auto staat op de weg. De lucht is blauw en het huis met een deur van hout.",
    "swedish": "En röd bil står på vägen. Himlen är blå och det finns ett hus med en dörr av trä.",
    "polish": "Czerwony samochód stoi na ulicy. Niebo jest niebieskie i w tle z lewej jest dom.",
    "russian": "Красная машина стоит на дороге. Небо в облаках и под деревом это дом с окном.",
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_the_language_is_guessed_from_small_words(name: str) -> None:
    assert language.guess([CAPTIONS[name]]) == name
    assert language.doubt([CAPTIONS[name]], f"punkt_tab/{name}") == ""
    assert ("look " + name.capitalize() in language.doubt([CAPTIONS[name]], "embedded")) == (
        name != "english"
    )


@pytest.mark.parametrize("text", ["", "猫在桌子上。", "Red shoe, size 42.", "the der le", "Ωραίο σπίτι"])
def test_where_it_is_not_clear_nothing_is_said(text: str) -> None:
    assert language.guess([text]) == ""
    assert language.doubt([text], "embedded") == ""
